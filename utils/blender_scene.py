"""Run inside Blender (3.x to 5.x) or by a Python that has bpy: a mesh with its material maps under a light map, frame by frame.

    blender --background --factory-startup --python-exit-code 9 --python blender_scene.py -- JOB.json
    python blender_scene.py JOB.json

JOB.json is written by `systems/relight.py`. Nothing of the project is imported: Blender brings a Python of its own.
"""

import json
import math
import os
import sys

import bpy
import mathutils
import numpy as np

SPECULAR = ("Specular IOR Level", "Specular")  # Blender 4, Blender 3
GPU_KINDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")


def give(node, names, value) -> None:
    """Set the first of the inputs that this Blender has."""
    for name in names:
        if name in node.inputs:
            node.inputs[name].default_value = value
            return


def make_object(job):
    """The mesh of the job's npz: vertices, faces, a texture coordinate for each corner, normals of vertices."""
    with np.load(job["mesh"]) as data:
        vertices, faces, uv, normals = data["vertices"], data["faces"], data["uv"], data["normals"]
    mesh = bpy.data.meshes.new("object")
    mesh.from_pydata(vertices.tolist(), [], faces.tolist())
    mesh.uv_layers.new(name="UVMap").data.foreach_set("uv", uv.astype(np.float32).ravel())
    mesh.polygons.foreach_set("use_smooth", np.ones(len(faces), bool))
    if hasattr(mesh, "use_auto_smooth"):  # before Blender 4.1 own normals ask for it
        mesh.use_auto_smooth = True
    mesh.normals_split_custom_set_from_vertices(normals.tolist())
    mesh.update()
    thing = bpy.data.objects.new("object", mesh)
    bpy.context.scene.collection.objects.link(thing)
    return thing


def make_material(job):
    """Principled BSDF fed by three images."""
    material = bpy.data.materials.new("recovered")
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = next(n for n in nodes if n.type == "BSDF_PRINCIPLED")
    give(shader, ("IOR",), 1.5)
    give(shader, SPECULAR, 0.5)
    for socket, key, space in (
        ("Base Color", "albedo", "sRGB"),
        ("Roughness", "roughness", "Non-Color"),
        ("Metallic", "metallic", "Non-Color"),
    ):
        texture = nodes.new("ShaderNodeTexImage")
        texture.image = bpy.data.images.load(job[key])
        texture.image.colorspace_settings.name = space
        texture.extension = "EXTEND"
        links.new(texture.outputs["Color"], shader.inputs[socket])
    return material


def make_light(job) -> None:
    """The light map as the world."""
    world = bpy.data.worlds.new("light")
    bpy.context.scene.world = world
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    background = next(n for n in nodes if n.type == "BACKGROUND")
    background.inputs["Strength"].default_value = job["strength"]
    texture, mapping, place = (nodes.new("ShaderNode" + kind) for kind in ("TexEnvironment", "Mapping", "TexCoord"))
    texture.image = bpy.data.images.load(job["hdr"])
    mapping.inputs["Rotation"].default_value = (0.0, 0.0, -math.radians(job["rotation"]))
    links.new(place.outputs["Generated"], mapping.inputs["Vector"])
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


def settings(job) -> None:
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
        raise RuntimeError("Cycles finds no GPU; set relight.device=cpu")


def use_gpu() -> bool:
    """Switch on the first kind of GPU that Cycles finds."""
    try:
        preferences = bpy.context.preferences.addons["cycles"].preferences
    except KeyError:
        return False
    for kind in GPU_KINDS:
        try:
            preferences.compute_device_type = kind
            preferences.get_devices()
        except Exception:  # a kind that this build does not know
            continue
        found = [d for d in preferences.devices if d.type == kind]
        if found:
            for device in preferences.devices:
                device.use = device.type == kind
            return True
    return False


def main() -> None:
    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    with open(words[0]) as file:
        job = json.load(file)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    thing = make_object(job)
    thing.data.materials.append(make_material(job))
    make_light(job)
    camera = make_camera(job)
    settings(job)
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
