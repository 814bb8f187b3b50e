"""A suite: benchmarks in a YAML file, one encode pass per data set, one record per benchmark.

What `run_suite(encoder, suite, out=OUT)` leaves behind (readers: `vlp report`, `vlp search`, people):

    OUT/results.jsonl                         one `eval.record.Record` a line, appended
    OUT/eval/<dataset>/features.safetensors   image [n, D], text [m, D] (fp32, unit norm; text only where captions were encoded)
    OUT/eval/<dataset>/items.json             {"schema": 1, "dataset", "data": <the data spec>, "keys": [n], "shards": [n],
                                               "indices": [n] (position in the source), "captions": [m],
                                               "caption_image": [m] (row of the picture each caption describes), "labels": [n]|null,
                                               "names": [C]|null}
    OUT/eval/<dataset>/retrieval.json         {"schema": 1, "k": 5, "num_images": n, "num_texts": m,
                                               "text_to_image": [{"caption": row, "text": str, "image": row, "rank": int,
                                                                  "found": [5 image rows], "scores": [5], "correct": [5 bools]}],
                                               "image_to_text": [{"image": row, "rank": int, "found": [5 caption rows],
                                                                  "texts": [5 str], "scores": [5], "correct": [5 bools]}]}
    OUT/eval/<dataset>/confusion.json         {"schema": 1, "names": [C], "support": [C], "recall": [C],
                                               "pairs": [{"true": c, "predicted": c, "count": int, "examples": [image rows]}]}
    OUT/eval/<dataset>/thumbnails/<row>.jpg   every picture row that retrieval.json or confusion.json names

Rows count kept pictures (bad ones are left out and counted in the record's `skips`). The files describe the latest run.
"""
