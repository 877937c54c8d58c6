"""Pure builders: one module per kind of child object."""
