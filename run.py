"""The command line: photographs of an object in, a coloured mesh in world units, a video and honest numbers out."""

import errno
import os
import sys

# torch's idle threads would spin on the cores that kernels run on; asleep at once, they would be woken for each small operation
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # GNU's OpenMP: turns of a loop before they sleep

from systems.cli import parse  # noqa: E402
from utils.errors import NO_MEMORY, UserError, one_line, out_of_memory  # noqa: E402
from utils.log import log, setup_logging  # noqa: E402
from utils.stop import stoppable, told  # noqa: E402


def main(words: list[str] | None = None) -> int:
    setup_logging()
    with stoppable():
        try:
            return command(words)
        except KeyboardInterrupt as stop:
            return told(stop)


def command(words: list[str] | None) -> int:
    """Do what the words ask for (by default those of the command line) and return the exit code; an error of the user is told and is 2."""
    try:
        args = parse(sys.argv[1:] if words is None else words)
        if args.eval_table:
            from systems.eval_table import write_table

            return write_table(args.eval_table, args.eval_out)
        from systems import run  # imports torch: --help and a misspelt flag answer at once

        if args.eval is True:
            return run.execute(run.prepare(None, args.resume, args.overrides), train=False, test=True, mesh=False, film=False, whole=True)
        if args.eval:
            from systems.eval_command import evaluate_files

            return evaluate_files(args)
        if args.photos:
            args.overrides = run.photographs(args.config, args.photos, args.masks, args.overrides)
        if args.marker_size:
            args.overrides = [*args.overrides, f"dataset.marker_size={args.marker_size}"]
        if args.scale_distance:
            args.overrides = run.measured(args.scale_distance, args.resume, args.overrides)
        if args.auto_mask:
            run.auto_masks(args.config, args.overrides, args.mask_model, args.mask_norm)
        if args.relight:
            return run.relit(args.resume, args.overrides, args.hdr, args.blender, args.poses)
        if args.view and not args.train:
            return run.looked_at(args.resume, args.overrides, args.view_port)
        if not (args.train or args.test or args.mesh):
            return 0
        if args.train and (args.config or args.resume):
            from systems import stages

            if stages.staged(args.config, args.resume, args.overrides):
                return stages.run(args.config, args.resume, args.overrides, args.preset, not args.no_video, args.view_port)
        job = run.prepare(args.config, args.resume, args.overrides, args.preset)
        return run.execute(job, args.train, args.test, args.mesh, film=not args.no_video, view=args.view_port)
    except UserError as error:
        log.error("error: %s", one_line(str(error)))
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        log.error("error: %s...: the name is too long for a file", one_line(str(error.filename))[:80])
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        log.error("error: %s", NO_MEMORY)
        return 2


if __name__ == "__main__":
    sys.exit(main())
