"""What can be trusted of many models in production, from their immutable inference logs."""
