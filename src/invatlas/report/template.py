"""The template that every report is made from: how values are said, and how a page is written."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape


def render_page(name: str, **parts: Any) -> str:
    """Fill a template of `report/templates`; all text in the parts is escaped.

    Parameters
    ----------
    name
        File name of the template.
    **parts
        What it shows.

    Returns
    -------
    str
        HTML.
    """
    environment = Environment(
        loader=PackageLoader("invatlas.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        thousands=lambda number: f"{number:,}",
        share=format_share,
        duration=format_duration,
        date=format_date,
        setting=format_setting,
        digest=digest_script,
        breakable=format_breakable,
    )
    return environment.get_template(name).render(**parts)


def write_html(path: str | Path, html: str) -> Path:
    """Write a page; an existing file is replaced in one step.

    Parameters
    ----------
    path
        File to write.
    html
        The page.

    Returns
    -------
    Path
        The file.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(unfinished, path)
    return path


def format_share(share: float) -> str:
    """Say a share in per cent; a little is not said as nothing, nor nearly all as all."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def format_duration(seconds: float) -> str:
    """Say a duration in the units a person would use."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_date(created: str) -> str:
    """Say an ISO 8601 time as a date and a time; anything else is left as it is."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M}" + (" UTC" if time.tzname() == "UTC" else "")


def format_setting(value: Any) -> str:
    """Say a setting the way a configuration file would."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def format_breakable(name: str) -> Markup:
    """Let a name break into lines after underscores, not within words nor before an ending."""
    return Markup("_<wbr>").join(escape(part) for part in re.split("_(?=[^_]{3})", name))


def digest_script(script: str) -> str:
    """Hash the page's own script, the only one its content security policy lets run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
