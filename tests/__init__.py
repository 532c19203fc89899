"""Tests, in folders that say what they need: nothing, whole nights, stores, engines, or what is deployed."""
