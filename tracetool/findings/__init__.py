"""Findings: what is wrong in one trace, where, what it costs a step, and what would mend it."""
