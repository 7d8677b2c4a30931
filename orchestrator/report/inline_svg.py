"""Turn matplotlib's SVG into an element for the page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ablatrix.trainer.rundir.console import visible

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.figure_data import Figure


def inline_svg(svg: bytes, figure: Figure, variant: str) -> str:
    """Return matplotlib's SVG as an element for the page.

    Style attributes, which the page's security policy forbids, become presentation attributes, so that the style sheet
    can replace colors on a dark page; ids are unique across figures; the areas of panels are marked for hover.js.
    """
    root = ElementTree.fromstring(svg)
    referenced = re.findall(r'(?:href="|url\()#([^")]+)', svg.decode())
    names = {old: f"{figure.name}-{variant}-{i}" for i, old in enumerate(dict.fromkeys(referenced))}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        element.attrib = _attributes(element, names)
    shown = {"class": variant, "viewBox": root.get("viewBox", ""), "role": "img", "aria-label": visible(figure.title)}
    root.attrib = {**shown, "stroke-linejoin": "round", "data-figure": figure.name}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(element: ElementTree.Element, names: dict[str, str]) -> dict[str, str]:
    """Return an element's attributes for the page. names: old id -> new id, for references."""
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    gid = attributes.pop("id", "")
    if gid in names:
        attributes["id"] = names[gid]
    elif gid.startswith("panel"):
        attributes["data-panel"] = gid.removeprefix("panel")
    for declaration in attributes.pop("style", "").split(";"):
        key, _, value = declaration.partition(":")
        if key.strip() and key.strip() != "font-family":
            attributes[key.strip()] = value.strip()
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    return {key: _tidy(key, value, names) for key, value in attributes.items()}


def _tidy(key: str, value: str, names: dict[str, str]) -> str:
    """Return an attribute with references to the new ids and coordinates rounded to a hundredth of a point."""
    if key == "href":
        return f"#{names[value.removeprefix('#')]}"
    if value.startswith("url(#"):
        return f"url(#{names[value[5:-1]]})"
    if key in ("d", "x", "y", "transform"):
        return re.sub(r"(\.\d\d)\d+|\s+(?=\s)", r"\1", value).strip()
    return value
