"""What the engine costs, measured in one interleaved run."""
