"""What tests read from a report's page in a browser, and do to it."""

import json
from typing import Any

import numpy as np


def canvas(page: Any, name: str) -> np.ndarray:
    """The red channel of a canvas, (H, W)."""
    script = (
        "const c = document.getElementById(arguments[0]);"
        "return [c.width, c.height, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]"
    )
    width, height, values = page.execute_script(script, name)
    return np.array(values).reshape(height, width, 4)[..., 0]


def set_range(page: Any, name: str, value: float) -> None:
    page.execute_script(
        "const i = document.getElementById(arguments[0]); i.value = arguments[1];"
        "i.dispatchEvent(new Event('input', { bubbles: true }))",
        name,
        value,
    )


def click(page: Any, group: str, place: int) -> None:
    page.execute_script("document.querySelectorAll(arguments[0] + ' button')[arguments[1]].click()", f"#{group}", place)


def embedded(page: Any) -> dict[str, Any]:
    return json.loads(page.execute_script("return document.getElementById('data').textContent"))


def said(page: Any) -> str:
    return page.execute_script("return document.getElementById('said').textContent")
