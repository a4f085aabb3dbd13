"""Constrain generated answers to a response format, with grammars of xgrammar."""
