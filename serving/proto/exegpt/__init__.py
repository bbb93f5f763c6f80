"""The protocols of this house, by version."""
