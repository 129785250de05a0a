"""Turns the roles of docstrings, as in :class:`fastae.nn.Autoencoder`, into code for the site."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`~?\.*([^`]*)`")


class Roles(griffe.Extension):
    """Rewrite every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value).replace("``", "`")
            obj.docstring.value = text.replace("[*", r"[\*")  # a shape, no emphasis
