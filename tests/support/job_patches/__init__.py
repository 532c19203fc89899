"""What a job of a zygote imports first: each module changes one thing in the world that it sees."""
