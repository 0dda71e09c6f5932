"use strict";

// The mesh: orbit, zoom and pan; colours, shading or normals. World z is up.
(() => {
  const stage = document.getElementById("stage"), source = document.getElementById("mesh");
  if (!stage || !source) return;
  const canvas = stage.querySelector("canvas"), mesh = JSON.parse(source.textContent);
  const gl = canvas.getContext("webgl2", { antialias: true });
  if (!gl) { stage.classList.add("no-webgl"); return; }

  const VERTEX = `#version 300 es
    in vec3 position; in vec3 normal; in vec3 colour;
    uniform mat4 camera; uniform vec3 eye;
    out vec3 n; out vec3 c; out vec3 toEye;
    void main() { gl_Position = camera * vec4(position, 1.0); n = normal; c = colour; toEye = eye - position; }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 n; in vec3 c; in vec3 toEye;
    uniform int mode; uniform mat3 axes;
    out vec4 pixel;
    void main() {
      vec3 v = normalize(toEye), m = normalize(n + 1e-6 * v);
      if (dot(m, v) < 0.0) m = -m;
      vec3 inView = m * axes;
      if (mode == 0) pixel = vec4(c, 1.0);
      else if (mode == 2) pixel = vec4(0.5 + 0.5 * inView, 1.0);
      else if (mode == 3) pixel = vec4(0.07, 0.09, 0.1, 1.0);
      else {
        float key = max(dot(inView, normalize(vec3(-0.45, 0.55, 0.75))), 0.0), sky = 0.5 + 0.5 * m.z;
        vec3 light = vec3(0.16, 0.17, 0.19) + 0.24 * sky + key * vec3(0.62, 0.60, 0.56);
        pixel = vec4(light * vec3(0.86, 0.85, 0.83) + 0.10 * pow(max(inView.z, 0.0), 24.0), 1.0);
      }
    }`;

  function shader(kind, text) {
    const made = gl.createShader(kind);
    gl.shaderSource(made, text);
    gl.compileShader(made);
    if (!gl.getShaderParameter(made, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(gl.getShaderInfoLog(made));
    return made;
  }
  const program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  gl.useProgram(program);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const at = { camera: uniform("camera"), eye: uniform("eye"), mode: uniform("mode"), axes: uniform("axes") };

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  function attribute(name, data, kind) {
    const place = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, 3, kind, true, 0, 0);
  }
  attribute("position", bytes(mesh.positions), gl.SHORT);
  attribute("normal", bytes(mesh.normals), gl.SHORT);
  if (mesh.colours) attribute("colour", bytes(mesh.colours), gl.UNSIGNED_BYTE);
  const faces = mesh.wide ? new Uint32Array(bytes(mesh.indices)) : new Uint16Array(bytes(mesh.indices));
  const index = mesh.wide ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT;
  const faceBuffer = gl.createBuffer(), edgeBuffer = gl.createBuffer();
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, faceBuffer);
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
  let edges = 0;
  function makeEdges() {  // each edge of a closed surface is met twice, once in each direction
    const lines = new faces.constructor(2 * faces.length);
    for (let k = 0; k < faces.length; k += 3)
      for (let i = 0; i < 3; i++) { lines[edges++] = faces[k + i]; lines[edges++] = faces[k + (i + 1) % 3]; }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, edgeBuffer);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, lines, gl.STATIC_DRAW);
  }

  // ------------------------------------------------------------ camera
  const corner = new Int16Array(bytes(mesh.positions));
  let reach = 0.1;  // radius of the mesh around the middle of its box
  for (let k = 0; k < corner.length; k += 3) reach = Math.max(reach, Math.hypot(corner[k], corner[k + 1], corner[k + 2]) / 32767);
  const TAN = Math.tan((16 * Math.PI) / 180);  // of half the field of view
  const start = { turn: 0, lift: (mesh.elevation * Math.PI) / 180, zoom: 1, target: [0, 0, 0] };
  let view = structuredClone(start), mode = mesh.colours ? 0 : 1, wire = false, spin = !matchMedia("(prefers-reduced-motion: reduce)").matches;

  function frame() {  // right, up and back of the camera
    const [ct, st, cl, sl] = [Math.cos(view.turn), Math.sin(view.turn), Math.cos(view.lift), Math.sin(view.lift)];
    return [[-st, ct, 0], [-ct * sl, -st * sl, cl], [ct * cl, st * cl, sl]];
  }
  const foot = () => Math.min(0.25, 46 / Math.max(1, canvas.clientHeight));  // share of the height that the buttons take
  const distance = () => (reach * 1.02) / Math.sin(Math.atan(TAN * Math.min(1 - foot(), canvas.width / canvas.height))) / view.zoom;

  function draw() {
    const scale = Math.min(devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * scale)), height = Math.max(1, Math.round(canvas.clientHeight * scale));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const [right, up, back] = frame(), d = distance(), eye = view.target.map((v, k) => v + d * back[k]);
    const near = Math.max(d - 2.2 * reach, 0.01 * d), far = d + 2.2 * reach + 2, x = height / width / TAN, y = 1 / TAN;
    const dot = (a) => -(a[0] * eye[0] + a[1] * eye[1] + a[2] * eye[2]);
    const lift = foot(), p = (near + far) / (near - far), q = (2 * near * far) / (near - far), z = dot(back);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.enable(gl.DEPTH_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(at.camera, false, [0, 1, 2].flatMap((k) => [x * right[k], y * up[k] - lift * back[k], p * back[k], -back[k]])
      .concat([x * dot(right), y * dot(up) - lift * z, p * z + q, -z]));
    gl.uniformMatrix3fv(at.axes, false, [...right, ...up, ...back]);
    gl.uniform3fv(at.eye, eye);
    gl.uniform1i(at.mode, mode);
    gl.enable(gl.POLYGON_OFFSET_FILL);
    gl.polygonOffset(1, 1);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, faceBuffer);
    gl.drawElements(gl.TRIANGLES, faces.length, index, 0);
    if (!wire) return;
    if (!edges) makeEdges();
    gl.uniform1i(at.mode, 3);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, edgeBuffer);
    gl.drawElements(gl.LINES, edges, index, 0);
  }

  let asked = 0, last = 0, turned = 0, seen = true;
  function request() { if (!asked && seen) asked = requestAnimationFrame(tick); }
  function tick(now) {  // turns slowly until it is touched; only to and fro before a side that no photograph shows
    asked = 0;
    if (spin) turned += Math.min(now - last, 100) * 0.00022;
    if (spin) view.turn = mesh.swing ? ((mesh.swing * Math.PI) / 180) * Math.sin(turned) : turned;
    last = now;
    draw();
    if (spin) request();
  }

  // ------------------------------------------------------------ hands
  const fingers = new Map();
  const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
  function zoom(factor) { view.zoom = clamp(view.zoom * factor, 0.4, 12); request(); }
  function orbit(dx, dy) {
    view.turn -= dx * 0.008;
    view.lift = clamp(view.lift + dy * 0.008, -1.55, 1.55);
    request();
  }
  function pan(dx, dy) {
    const [right, up] = frame(), step = (2 * distance() * TAN) / canvas.clientHeight;
    view.target = view.target.map((v, k) => clamp(v + step * (dy * up[k] - dx * right[k]), -1.5, 1.5));
    request();
  }
  const middle = () => {
    const [a, b] = [...fingers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  canvas.addEventListener("pointerdown", (e) => {
    spin = false;
    canvas.setPointerCapture(e.pointerId);
    fingers.set(e.pointerId, { x: e.clientX, y: e.clientY });
  });
  canvas.addEventListener("pointermove", (e) => {
    const old = fingers.get(e.pointerId);
    if (!old) return;
    const before = fingers.size === 2 ? middle() : null;
    fingers.set(e.pointerId, { x: e.clientX, y: e.clientY });
    if (before) {
      const now = middle();
      pan(now.x - before.x, now.y - before.y);
      zoom(now.apart / Math.max(before.apart, 1));
    } else if (e.shiftKey || e.buttons & 6) pan(e.clientX - old.x, e.clientY - old.y);
    else orbit(e.clientX - old.x, e.clientY - old.y);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => fingers.delete(e.pointerId));
  canvas.addEventListener("contextmenu", (e) => e.preventDefault());
  canvas.addEventListener("wheel", (e) => {  // the page scrolls on until the mesh has been touched
    if (spin || document.activeElement !== canvas) return;
    e.preventDefault();
    zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.04 : 0.0014)));
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { view = structuredClone(start); request(); });
  canvas.addEventListener("keydown", (e) => {
    const act = { ArrowLeft: () => orbit(-12, 0), ArrowRight: () => orbit(12, 0), ArrowUp: () => orbit(0, 12), ArrowDown: () => orbit(0, -12),
      "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15) }[e.key];
    if (!act || e.ctrlKey || e.metaKey) return;
    e.preventDefault();
    spin = false;
    act();
  });

  const buttons = stage.querySelectorAll(".modes button");
  const show = () => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.value === "wire" ? wire : Number(b.value) === mode)));
  buttons.forEach((b) => b.addEventListener("click", () => {
    if (b.value === "wire") wire = !wire;
    else mode = Number(b.value);
    show();
    request();
  }));
  show();
  canvas.addEventListener("webglcontextlost", () => { spin = false; seen = false; stage.classList.add("no-webgl"); });
  new ResizeObserver(() => request()).observe(canvas);
  new IntersectionObserver((found) => { seen = found[found.length - 1].isIntersecting; request(); }).observe(canvas);
  request();
})();
