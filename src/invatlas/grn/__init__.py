"""Which gene drives which: equations of expression in time, read from data."""
