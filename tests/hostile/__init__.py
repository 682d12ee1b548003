"""Bad and hostile input: an error of ours that helps, or the right answer; no raw error, half a file or silent NaN.

What is promised, and where it is tried (``make hostile`` tries the marked * with more examples, kills and processes):

===========================  =========================================================================================
threads on one model         models/test_locks.py: 4 threads of 50 runs, edited and plain, equal to serial bit for bit;
                             sweeps and generation beside runs; the order of waiting; an error gives the lock back
full disk                    test_files.py (saving, tables, reports, figures), engine/test_resume.py and
                             engine/sweep/test_cache.py (results are kept in memory), models/sources/test_cache.py
stale cache                  models/test_fingerprint.py (bytes, configuration, hooks, adapters, buffers),
                             engine/sweep/test_cache.py (a changed model is computed again)
NaN and infinity             engine/test_run.py, engine/test_generation.py, probes/test_output.py (an overflowing head),
                             models/test_handle.py (weights), metrics/test_base.py (thresholds), test_functions.py
somebody's attention         attention/test_keywords.py (neither replaced, before or after loading)
prompts of another model     prompts/test_identity.py (tokenizer, images, their processor), test_calls.py
pairing, joining             metrics/test_comparison.py (other prompts), test_schema.py (concat of other edits)
checkpoints                  models/test_handle.py (missing, mismatched, damaged, more blocks than the configuration)
files                        test_schema.py (300 flipped bits, versions, what is no reading), test_files.py (links,
                             devices, pipes), engine/sweep/test_cache.py (flipped bits are computed again),
                             test_values.py (names, attributes), test_faults.py* (kills, another user, two processes)
types                        test_values.py (every field of every probe and edit), test_functions.py (metrics, figures),
                             test_calls.py (calls around a model, settings), cli/test_app.py
anything at all              test_properties.py*: texts, ids, edits, sweeps, generation, comparisons, files, commands
texts in a browser           report/test_browser.py and report/test_page.py (scripts, markup, right-to-left)
===========================  =========================================================================================
"""
