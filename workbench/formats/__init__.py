"""Files in and out: prompts, demonstrations, preferences, rankings.

:func:`workbench.formats.detect.detect` tells what a file holds, :func:`workbench.formats.reader.parse` reads it,
:mod:`workbench.formats.importer` and :mod:`workbench.formats.exporter` join files and projects.
"""
