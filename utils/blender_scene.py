"""Render a glTF mesh with its material under an environment map, frame by frame, in Blender (3 to 5) or a Python with bpy.

    blender --background --factory-startup --python-exit-code 9 --python blender_scene.py -- JOB.json
    python blender_scene.py JOB.json

JOB.json is written by `systems/relight.py`. No module of the project is imported, since Blender has its own Python.
"""

import json
import math
import os
import sys

import bpy
import mathutils

SPECULAR = ("Specular IOR Level", "Specular")  # Blender 4, Blender 3
GPU_KINDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")


def set_input(node, names, value) -> None:
    """Set the first input of these names that exists in this version of Blender."""
    for name in names:
        if name in node.inputs:
            node.inputs[name].default_value = value
            return


def import_object(job) -> None:
    """Import the glTF file of the job: the mesh, turned from y up to z up, with its material.

    The file gives the Principled BSDF its base colour (sRGB), roughness and metallic (not colour). The index of refraction
    is 1.5, as glTF defines, and a texture goes on with its edge texels rather than from the other side.
    """
    import addon_utils  # importable only after bpy

    if addon_utils.enable("io_scene_gltf2") is None:
        raise RuntimeError("this Blender has no glTF importer (its add-on io_scene_gltf2); install a complete Blender")
    bpy.ops.import_scene.gltf(filepath=job["mesh"])
    if not any(thing.type == "MESH" for thing in bpy.context.scene.objects):
        raise RuntimeError(f"{job['mesh']}: Blender imported no mesh")
    for material in bpy.data.materials:
        for node in material.node_tree.nodes if material.use_nodes else ():
            if node.type == "BSDF_PRINCIPLED":
                set_input(node, ("IOR",), 1.5)
                set_input(node, SPECULAR, 0.5)
            elif node.type == "TEX_IMAGE":
                node.extension = "EXTEND"


def make_light(job) -> None:
    """Set the environment map of the job as the light of the world."""
    world = bpy.data.worlds.new("light")
    bpy.context.scene.world = world
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    background = next(n for n in nodes if n.type == "BACKGROUND")
    background.inputs["Strength"].default_value = job["strength"]
    texture, mapping, coordinates = (nodes.new("ShaderNode" + kind) for kind in ("TexEnvironment", "Mapping", "TexCoord"))
    texture.image = bpy.data.images.load(job["hdr"])
    mapping.inputs["Rotation"].default_value = (0.0, 0.0, -math.radians(job["rotation"]))
    links.new(coordinates.outputs["Generated"], mapping.inputs["Vector"])
    links.new(mapping.outputs["Vector"], texture.inputs["Vector"])
    links.new(texture.outputs["Color"], background.inputs["Color"])


def make_camera(job):
    scene = bpy.context.scene
    data = bpy.data.cameras.new("camera")
    camera = bpy.data.objects.new("camera", data)
    scene.collection.objects.link(camera)
    scene.camera = camera
    data.sensor_fit = "HORIZONTAL"
    data.sensor_width = 36.0
    data.clip_start, data.clip_end = job["clip"]
    return camera


def set_render_options(job) -> None:
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples = job["samples"]
    scene.cycles.use_denoising = False
    scene.cycles.seed = 0
    scene.render.resolution_x, scene.render.resolution_y = job["width"], job["height"]
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = job["transparent"]
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGBA"
    scene.render.image_settings.color_depth = "8"
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    if job["threads"]:
        scene.render.threads_mode, scene.render.threads = "FIXED", job["threads"]
    scene.cycles.device = "CPU"
    if job["device"] != "cpu" and use_gpu():
        scene.cycles.device = "GPU"
    elif job["device"] == "cuda":
        raise RuntimeError("relight.device=cuda, but Cycles finds no GPU; set relight.device=cpu")


def use_gpu() -> bool:
    """Enable the GPUs of the first kind that Cycles finds; False where it finds none."""
    try:
        preferences = bpy.context.preferences.addons["cycles"].preferences
    except KeyError:
        return False
    for kind in GPU_KINDS:
        try:
            preferences.compute_device_type = kind
            preferences.get_devices()
        except Exception:  # a kind that this build does not support
            continue
        found = [d for d in preferences.devices if d.type == kind]
        if found:
            for device in preferences.devices:
                device.use = device.type == kind
            return True
    return False


def main() -> None:
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    with open(arguments[0]) as file:
        job = json.load(file)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    import_object(job)
    make_light(job)
    camera = make_camera(job)
    set_render_options(job)
    print(f"RELIGHT blender {bpy.app.version_string}, {bpy.context.scene.cycles.device}", flush=True)
    for i, frame in enumerate(job["frames"]):
        camera.matrix_world = mathutils.Matrix(frame["camera_to_world"])
        camera.data.lens = 36.0 * frame["focal"] / job["width"]
        camera.data.shift_x, camera.data.shift_y = frame["shift"]
        bpy.context.scene.render.filepath = os.path.join(job["out"], frame["name"] + ".png")
        bpy.ops.render.render(write_still=True)
        print(f"RELIGHT frame {i + 1}/{len(job['frames'])}", flush=True)


if __name__ == "__main__":
    main()
