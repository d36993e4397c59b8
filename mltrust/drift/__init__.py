"""Whether what models read and predict still is what it was."""
