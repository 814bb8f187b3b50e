"""Every reason by which something is left out, changed or suspected, with what it means and what to do about it.

One word is counted, in skips.jsonl, in the notes of a source and by `vlp data verify`; this page says the rest.
"""

from __future__ import annotations

_AGAIN = "fetch or write the shard again; `damaged: keep` uses the whole samples before the damage"
_SEE = "look at the file; leave it out with a keep-list, or write the set again with `vlp data build`"
_LIMIT = "raise data.limits if such pictures are wanted"

REMEDIES: dict[str, str] = {
    # a damaged tar
    "not_a_tar": f"no tar at all; {_AGAIN}",
    "compressed": "a compressed tar, in which no sample can be reached; unpack it: gunzip, unzstd",
    "cut_member": f"the file ends inside a member; {_AGAIN}",
    "cut_header": f"the file ends inside a header; {_AGAIN}",
    "no_end_marker": f"its writer was stopped; {_AGAIN}",
    "bad_header": f"a header does not bear out its checksum; {_AGAIN}",
    "data_after_end": "two tars in one file, or a hole; unpack with `tar --ignore-zeros -x`, `vlp data build` again",
    "damaged_shard": f"used up to the damage; {_AGAIN}",
    "missing_sample": f"dataset.json counts them, the shard has them no more; {_AGAIN}",
    "torn_sample": f"the damage took a part of it, so it is left out; {_AGAIN}",
    # shards against what is said of them
    "missing_shard": "dataset.json or the pattern names it; fetch it, or run `vlp data index` on what is there",
    "wrong_count": "the tar holds another number than dataset.json says; run `vlp data index` if the tar is right",
    "wrong_bytes": "changed or not whole since dataset.json was written; fetch it again, or run `vlp data index`",
    "wrong_sha256": "other bytes than were written: fetch it again; if the change was wanted, run `vlp data index`",
    "bad_index": "the side index is not of this tar; run `vlp data index`",
    "no_manifest": "without dataset.json nobody knows how many samples there should be; run `vlp data index`",
    # members of a tar
    "hostile_member": "a link, a device, or a path that leaves the archive; left out",
    "meta_member": "webdataset's own; left out",
    "no_key": "a name without key or extension; left out",
    "dup_key": "the first one is used, the others are left out; if they are other samples, give them other keys",
    "orphan_member": "members of a sample that lie apart; joined here, other readers lose them: write the shard again",
    "dotted_key": "one sample, or two with dots in their keys? then `key_split: last-dot`",
    # a sample that is not used
    "unreadable": "the file is gone, too short or out of reach; fetch it again, or run `vlp data verify`",
    "member_bytes": "a member too large to be one picture or text; not read; leave it out",
    "no_image": "no member with the ending of a picture; leave the sample out",
    "not_image": f"not a picture that can be decoded; {_SEE}",
    "truncated_image": f"the picture is not whole; {_SEE}",
    "image_bytes": f"more bytes than data.limits.max_bytes; {_LIMIT}",
    "too_many_pixels": f"more pixels than data.limits allows; not decoded; {_LIMIT}",
    "too_many_scans": "a progressive JPEG with more scans than any writer makes; not decoded; leave it out",
    "too_small": f"a side below data.limits.min_side; {_LIMIT}",
    "extreme_aspect": f"longer than data.limits.max_aspect times its short side; {_LIMIT}",
    "no_caption": "none of the fields holds a text; name the fields: captions.fields=[...]",
    "empty_caption": f"only blanks in the caption; {_SEE}",
    "bad_encoding": "a text that is not UTF-8; write it again, or set captions.encoding_errors=replace",
    "bad_json": f"the json member cannot be read; {_SEE}",
    "no_label": "no label in the fields of `labels`; name them",
    "bad_label": "a label that is no class; look at `labels`",
    "no_group": "the field of group_by is not there; choose another",
    "no_column": "the member, array or field of a column is not there; look at `columns`",
    "bad_column": "other numbers than the column says; look at `columns`",
    "bad_crop": "the box is not inside of the picture; write it again",
    "unreadable_shard": "a url of a stream that fails, or ends early; fetch it, or make indexed shards of it",
    "bad_member": "a member of a stream that webdataset cannot group; make indexed shards: `vlp data index`",
    # a sample that is used all the same
    "caption_cut": "longer than data.limits.max_caption_bytes; cut there",
    "caption_not_text": "items of a list of captions that are no texts; left out",
    "caption_without_tokens": "cleaning or the tokenizer leaves nothing of it; left out, its picture has one fewer",
    "no_negative": "no false caption to be had; its slots stay empty",
    "negative_is_caption": "once cut, a false caption reads like a true one; left out",
    "flat_image": "a picture of one colour: a placeholder? leave it out with a keep-list",
    # files beside the samples
    "multiline_row": "captions over several lines, or a stray quote that swallows rows? then `quoting: none`",
    "row_without_picture": "rows of the table whose file is not there; left out",
    "picture_without_row": "files that the table does not name; left out",
    "mask_of_picture": "<key>.mask.png beside the picture <key>.jpg: no picture by itself; left out",
    "not_in_class_folder": "pictures outside of the class folders; left out",
    "not_in_keep_list": "not in the keep-list",
    "in_other_split": "in the other split",
    "shared_caption": "also a caption of a set that must be disjoint; leave it out of one",
    "repeated_caption": "a caption of two samples; leave one out",
}
