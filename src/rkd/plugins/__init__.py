"""The built-in plugins: one file, one method (or attack, family of models, source of data). They import core only."""
