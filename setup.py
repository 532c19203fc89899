"""A shim for Beam's ``--setup_file``, which runs ``setup.py sdist``; all metadata is in pyproject.toml."""

from setuptools import setup

setup()
