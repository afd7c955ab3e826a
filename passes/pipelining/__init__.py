"""Pipeline parallelism: a program cut into stages, and schedules that run them.

segments           the program of a microbatch: shared, prologue, layers, epilogue
stages             layers cut into stages, and where they are kept
schedule           ticks as data: gpipe, one_f_one_b, interleaved, zero_bubble
stage_steps        one tick of all stages, forward or backward
run_schedule       the ticks in loops, with prologue and epilogue around them
vocabulary         embedding and vocabulary layer split over the stages
rule               all of it as a program's gradient rule
closed_forms       the time that stages wait
picture            who does what when, as data
"""
