"""What the engine costs, beside the bare limits and its peers, measured in one interleaved run."""
