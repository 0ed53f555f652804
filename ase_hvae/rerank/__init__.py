"""The best candidates of a finished run by a second calculator, beside the run and never mixed into its ranking.

:func:`ase_hvae.rerank.run.rerank` is the way in. Worker processes load :mod:`ase_hvae.rerank.opinion` only.
"""
