"""How a site trains within a round: one file a local rule."""
