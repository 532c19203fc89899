"""The pages, and the scripts that write parts of them: ``architecture.py`` a picture, ``flags.py`` tables."""
