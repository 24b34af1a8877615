"""Questions asked of an atlas."""
