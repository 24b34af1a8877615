"""What the latents tell of donors: cells an atlas was fitted to, and cells kept from it.

Half of the Kang cells, drawn at random, are fitted with defaults (calibration on cells drawn at
random); the audit asks each half in turn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import load_study
from peers import say, write_json

import invatlas as ia


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    study = load_study("kang").adata
    fitted = np.random.default_rng(args.seed).random(study.n_obs) < 0.5
    settings = ia.Settings(spared_donors=0.0, seed=args.seed)
    atlas = ia.fit(study[fitted].copy(), ["cell_type", "condition"], ["donor"], settings=settings)
    tables = []
    for name, rows in (("fitted", fitted), ("kept", ~fitted)):
        start = time.perf_counter()
        found = ia.evaluate.leakage(atlas, study[rows].copy(), seed=args.seed)
        say(f"{name}: {rows.sum()} cells, {time.perf_counter() - start:.0f} s")
        tables.append(found.assign(half=name))
    table = pd.concat(tables)
    shown = ["half", "covariate", "latents", "probe", "score", "null_95", "p_value", "share"]
    say(table[shown].round(3).to_string(index=False))
    if args.json:
        write_json(args.json, {"seed": args.seed, "answers": table.to_dict("records")})


if __name__ == "__main__":
    main()
