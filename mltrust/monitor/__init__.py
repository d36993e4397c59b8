"""From series to findings, from findings to incidents, from incidents to decisions: pure functions of plain rows."""
