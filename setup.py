"""What pyproject.toml has no words for: the part in C. Without a compiler the package does without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("replicator.fs._many", ["replicator/fs/_many.c"], py_limited_api=True, optional=True)
    ],
)
