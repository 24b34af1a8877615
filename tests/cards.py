"""The card of a folder, changed as one who means harm would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invatlas import folders


def edit_card(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a card, its digest included."""
    card = json.loads(file.read_text())
    change(card)
    card[folders.CARD_DIGEST] = folders.digest_card(card)
    file.write_text(json.dumps(card))
