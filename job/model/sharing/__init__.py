"""model/sharing."""
