"""Explanations: maps, pictures and pages of log-likelihood ratios; reports of finished runs."""

from avarc_cli.explain.explain import ExplainOptions, ExplainResult, explain_images
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.maps import Weighting
from avarc_cli.explain.report import WrittenReport, write_report
from avarc_cli.explain.write import write_explanations

__all__ = [
    "ExplainOptions",
    "ExplainResult",
    "Explanation",
    "Weighting",
    "WrittenReport",
    "explain_images",
    "write_explanations",
    "write_report",
]
