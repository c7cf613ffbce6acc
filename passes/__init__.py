"""Graph rewrites: an `ir.Model` in, an `ir.Model` out."""
