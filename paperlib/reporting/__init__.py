"""Tables, verdicts, figures and the report (paper section 7)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["figures"],
    submod_attrs={
        "notes": ["committed_audit", "committed_claims", "saw", "shown", "source"],
        "viewer": ["explore", "save_comparison"],
        "costs": ["selection_section"],
        "tables": ["abstract_table", "audit_table", "changes", "claims_table", "leaderboard", "measured",
                   "reported_vs_measured"],
    },
)
