"""Merging states: `update` batch by batch, `merge` over ranks or shards, `compute` once.

`accuracy.Accuracy`, `calibration.Calibration`, `recall.RecallAtK` (ranks from `recall.retrieval_ranks`),
`health.RankMe`, `health.Alignment`, `health.ModalityGap`, `health.Uniformity`; intervals in `interval`, what guessing
would reach in `chance`.
"""
