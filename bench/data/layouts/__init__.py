"""The layouts in which datasets were released: one module each, which reads the release's tables into rows."""
