"""The conductor: a model comes in, a proven artifact goes out."""
