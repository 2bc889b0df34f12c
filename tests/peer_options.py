"""Options of a test's helper process, from its command line; not of the package, whose import prepares a test run."""
from __future__ import annotations

import ast
from typing import Any, Dict, List


def options_from(words: List[str], **usual: Any) -> Dict[str, Any]:
    """Options of `Pycos`: the usual ones, and the words ``name=value``, each a literal of Python or else a text."""
    options = usual
    for word in words:
        name, _, text = word.partition("=")
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options
