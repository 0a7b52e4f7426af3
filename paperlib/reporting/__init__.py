"""Tables, verdicts, figures and the report (paper section 7)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["figures"],
    submod_attrs={
        "notes": ["committed_audit", "saw", "shown", "source"],
        "viewer": ["explore", "save_comparison"],
        "challenge": ["challenge_section", "leaderboard"],
        "claims": ["claims_table"],
        "differences": ["changes"],
        "selection": ["selection_section"],
        "tables": ["audit_table", "measured", "reported_vs_measured"],
    },
)
