# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of every codec and of both session machines: ``python -m fuzz --help``.

:mod:`fuzz.targets` says for each target what must hold whatever the input, and which refusals are proper. The inputs
grow from the recorded transcripts (:mod:`fuzz.corpus`), by coverage where atheris is installed, else by hypothesis.
"""
