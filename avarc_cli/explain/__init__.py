"""Explanations: maps, pictures and pages of log-likelihood ratios; reports of finished runs.

torch is imported when a name that needs it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.maps import Weighting
from avarc_cli.explain.options import ExplainOptions

if TYPE_CHECKING:
    from avarc_cli.explain.explain import ExplainResult, explain_images
    from avarc_cli.explain.of_run import explain_run
    from avarc_cli.explain.report import WrittenReport, write_report
    from avarc_cli.explain.write import write_explanations

__all__ = [
    "ExplainOptions",
    "ExplainResult",
    "Explanation",
    "Weighting",
    "WrittenReport",
    "explain_images",
    "explain_run",
    "write_explanations",
    "write_report",
]

# public name -> the module where it is defined
_LAZY = {
    "ExplainResult": "explain",
    "WrittenReport": "report",
    "explain_images": "explain",
    "explain_run": "of_run",
    "write_explanations": "write",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'avarc_cli.explain' has no attribute {name!r}")
    return getattr(import_module(f"avarc_cli.explain.{_LAZY[name]}"), name)
