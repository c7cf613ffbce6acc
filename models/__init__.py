"""Where models come from: sources, families, export, lazy weights."""
