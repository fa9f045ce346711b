"""What the workers' logs say about limits: pure functions of stamps, amounts and intervals."""
