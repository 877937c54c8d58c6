"""Pure planning: frozen observations in, frozen decisions with reasons out."""
