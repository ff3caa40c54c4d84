"""What takes instances in, and keeps them until they are scored and delivered."""
