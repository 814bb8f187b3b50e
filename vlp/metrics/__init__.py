"""Merging states: `update` batch by batch, `merge` over ranks or shards, `compute` once.

`accuracy.Accuracy`, `calibration.Calibration`, `recall.RecallAtK` (ranks from `recall.retrieval_ranks`),
`ranking.LabelRetrieval` (from `ranking.label_ranks`), `multilabel.MeanAveragePrecision`, `segmentation.Segmentation`,
`anomaly.AnomalyDetection`, `anomaly.AnomalyLocalization`, `health.RankMe`, `health.Alignment`, `health.ModalityGap`,
`health.Uniformity`; functions in `shifts` (robustness) and `continual`; intervals in `interval`, what guessing would
reach in `chance`.
"""
