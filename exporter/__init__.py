"""llm-exporter: says in one vocabulary what every part of a stack that serves language models says in its own."""

__version__ = "0.1.0"
