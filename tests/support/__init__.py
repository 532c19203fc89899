"""What tests share: nights and their oracles, processes, servers. No tests."""
