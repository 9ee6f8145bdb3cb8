"""GLSL sources.  One program per material and pass: software rasterisers run every branch of a program.

Lights: 0..2 samples of the key, 3 rim, 4..8 dome, all with shadows; 9 fill, without.  The dome is lit per vertex, the
rest per fragment.  Macros: ``MAT`` is a number of `Material`; ``PASS_SHADE`` or ``PASS_BUFFERS`` says what is written;
``LOOK`` is the version of the look.
"""

from __future__ import annotations

import enum

SHADOWED, LIGHTS = 9, 10
TILES_X, TILES_Y = 5, 2  # of the shadow map, one per light with a shadow


class Material(enum.IntEnum):
    """What a surface is made of."""

    SKIN = 0
    EYE = 1
    PLAIN = 2
    CARD = 3  # flat, cut out by its opacity: brows, lashes
    LENS = 4
    STRAND = 5


VERSION = "#version 330\n"

SHADOW = """
float shadow(int light, vec3 position, vec3 normal) {
  // Moved off the surface, so that it does not shadow itself.
  vec4 place = light_matrix[light] * vec4(position + normal*.03 + light_dir[light]*.015, 1.);
  vec3 unit = place.xyz*.5 + .5;
  if (any(lessThan(unit.xy, vec2(.01))) || any(greaterThan(unit.xy, vec2(.99)))) return 1.;
  vec2 tile = (unit.xy + vec2(float(light % 5), float(light / 5))) / vec2(5., 2.);
  return textureLod(shadow_map, vec3(tile, unit.z - .002), 0.);
}
"""

VERTEX = (
    """
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 along;   // skin: region weights; strands: across, along, number, layer
in vec3 rest;    // skin: place on the head at rest; strands: tangent
uniform mat4 view_projection;
uniform mat3 crop;
uniform mat4 light_matrix[9];
uniform vec3 light_dir[10];
uniform vec3 light_color[10];
uniform vec3 ground;
uniform float dome_wrap;
uniform sampler2DShadow shadow_map;
out vec3 v_position;
out vec3 v_normal;
out vec2 v_uv;
out vec4 v_along;
out vec3 v_rest;
out vec3 v_ambient;
invariant gl_Position;
"""
    + SHADOW
    + """
void main() {
  v_position = position;
  v_normal = normal;
  v_uv = uv;
  v_along = along;
  v_rest = rest;
  vec4 clip = view_projection * vec4(position, 1.);
  vec3 plane = crop * vec3(clip.xy, clip.w);
  gl_Position = vec4(plane.xy, clip.z, clip.w);
#ifdef PASS_SHADE
  v_ambient = ground * (.6 - .4*normal.y);
  for (int i = 4; i < 9; i++) {
    float facing = max(0., (dot(normal, light_dir[i]) + dome_wrap)/(1. + dome_wrap));
    v_ambient += light_color[i] * facing * shadow(i, position, normal);
  }
#else
  v_ambient = vec3(0.);
#endif
}
"""
)

# Coverage of a ribbon of three strands with ends of different length; gives each strand a random number.
STRAND_COVERAGE = """
float hash1(float x) { return fract(sin(x*127.1)*43758.5453); }
float strand(vec4 along, out float number) {
  float across = (along.x*.5 + .5)*3.0;
  number = hash1(along.z*17.3 + floor(across)*5.17 + along.w*3.1);
  float edge = abs(fract(across) - .5);
  float end = mix(.72, 1.02, number);
  return 1. - smoothstep(.40, .56, edge + .3*smoothstep(end - .45, end, along.y));
}
"""

DEPTH = (
    """
in vec2 v_uv;
in vec4 v_along;
in vec3 v_position;
in vec3 v_normal;
in vec3 v_rest;
in vec3 v_ambient;
uniform sampler2D tex;
"""
    + STRAND_COVERAGE
    + """
void main() {
#if MAT == 5
  float number;
  if (strand(v_along, number) < .5) discard;
#elif MAT == 1
  if (texture(tex, v_uv).a < .5) discard;
#endif
}
"""
)

DECLARATIONS = """
in vec3 v_position;
in vec3 v_normal;
in vec2 v_uv;
in vec4 v_along;
in vec3 v_rest;
in vec3 v_ambient;
layout(location=0) out vec4 out0;
layout(location=1) out vec4 out1;
uniform vec3 eye;
uniform vec3 light_dir[10];
uniform vec3 light_color[10];
uniform mat4 light_matrix[9];
uniform vec3 key_dir;
uniform sampler2DShadow shadow_map;
uniform sampler2D tex;
uniform sampler2DArray skins;
uniform sampler2D masks;      // scalp, lips, ears, eyelids
uniform sampler2D wrinkle_map;
uniform ivec3 skin_layers;
uniform vec3 skin_shares;
uniform vec3 skin_gain;
uniform float skin_contrast;
uniform vec3 lip_color;
uniform float lip_mix;
uniform float wrinkles;
uniform float oil;
uniform vec3 lid_color;
uniform float lid_mix;
uniform vec3 hair_color;
uniform vec3 tip_color;
uniform vec2 tip_heights;
uniform float grey;
uniform float hair_gloss;
uniform float scalp_mix;
uniform float buzz;
uniform vec4 beard;           // sides, chin, strength of the paint, its limit
uniform vec3 beard_color;
uniform float freckles;
uniform float blush;
uniform vec3 tint;
uniform float texture_mean;   // 0: the texture's own colours
uniform float texture_mix;
uniform vec3 eye_center;
uniform float roughness;
uniform int label;
uniform vec4 clay;            // colour in place of all others, and whether
uniform float opacity;
"""

NOISE = """
float hash3(vec3 p) { return fract(sin(dot(p, vec3(12.9898, 78.233, 37.719)))*43758.5453); }
float noise(vec3 p) {
  vec3 i = floor(p), f = fract(p);
  f = f*f*(3. - 2.*f);
  float near = mix(mix(hash3(i), hash3(i + vec3(1,0,0)), f.x),
                   mix(hash3(i + vec3(0,1,0)), hash3(i + vec3(1,1,0)), f.x), f.y);
  float far = mix(mix(hash3(i + vec3(0,0,1)), hash3(i + vec3(1,0,1)), f.x),
                  mix(hash3(i + vec3(0,1,1)), hash3(i + vec3(1,1,1)), f.x), f.y);
  return mix(near, far, f.z);
}
vec3 to_linear(vec3 c) { return c*c*(c*.3 + .7); }
// Distribution of microfacets (Walter et al., Microfacet Models for Refraction, EGSR 2007, equation 33).
float ggx(float normal_half, float alpha) {
  float a2 = alpha*alpha;
  float d = normal_half*normal_half*(a2 - 1.) + 1.;
  return a2/(3.1416*d*d);
}
"""

# Sets albedo, alpha, scatter, rough, gloss, wrap and the shading normal of each material.
SURFACE = """
  vec3 N = normalize(v_normal), V = normalize(eye - v_position);
#if MAT == 2 || MAT == 3
  if (dot(N, V) < 0.) N = -N;
#endif
  vec3 albedo = tint, shading = N;
  float alpha = 1., scatter = 0., rough = roughness, gloss = 1., wrap = 0., id = float(label);
#if MAT == 0          // skin
  vec4 mask = texture(masks, v_uv);
  // Three skins are mixed as logarithms, then brought to the wanted mean.
  vec3 skin = log(to_linear(texture(skins, vec3(v_uv, skin_layers.x)).rgb) + .004)*skin_shares.x
            + log(to_linear(texture(skins, vec3(v_uv, skin_layers.y)).rgb) + .004)*skin_shares.y
            + log(to_linear(texture(skins, vec3(v_uv, skin_layers.z)).rgb) + .004)*skin_shares.z;
  skin = skin*skin_contrast + log(skin_gain) + (texture(wrinkle_map, v_uv).r*2. - 1.)*wrinkles;
  albedo = exp(skin);
  float coarse = noise(v_rest*9.), fine = noise(v_rest*60.);
  albedo *= 1. + vec3(.10, .13, .15)*(coarse - .5) + .05*(fine - .5);
#if LOOK > 1
  // Redder where blood runs close to the surface, and pores that break the shine.
  float mottle = noise(v_rest*22. + 3.);
  albedo *= mix(vec3(1), vec3(1.03, .94, .93), smoothstep(.5, .85, mottle)*.5);
  float pores = noise(v_rest*150.);
  albedo *= 1. + .07*(pores - .5);
#endif
  if (freckles > 0.)
    albedo *= 1. - freckles*smoothstep(.42, .62, noise(v_rest*38.)*noise(v_rest*17. + 7.))*v_along.x*vec3(.35, .5, .6);
  albedo *= mix(vec3(1), vec3(1.07, .84, .84), blush*v_along.y);
  albedo = mix(albedo, lip_color*(.85 + .3*fine), lip_mix*mask.g);
  albedo = mix(albedo, lid_color, lid_mix*mask.a);
  // Scalp and beard below the strands.
  float scalp = smoothstep(mix(.38, .15, buzz), mix(.75, .55, buzz), mask.r + .35*(fine - .5))*scalp_mix;
  float stubble = clamp(beard.x*v_along.z + beard.y*v_along.w, 0., 1.);
  stubble = smoothstep(.05, .85, stubble + .35*(fine - .5)*step(.02, stubble));
  stubble = clamp(stubble*(.45 + .8*noise(v_rest*75.))*beard.z, 0., beard.w)*(1. - mask.g);
  albedo = mix(albedo, hair_color*(.22 + .3*fine)*(1. + .9*buzz), scalp);
  albedo = mix(albedo, beard_color*(.6 + .7*fine), stubble);
  float covered = max(scalp, stubble);
  scatter = 1. - covered*.8;
  rough = mix(.47, .33, mask.g);
  gloss = oil*(1. - .7*covered)*(1. + 1.4*mask.g);
  wrap = .14;
  // Bumps from the texture (Mikkelsen, Bump Mapping Unparametrized Surfaces on the GPU, 2010).
  float height = dot(albedo, vec3(.33))*.045/(dot(skin_gain, vec3(.33)) + .02) + .0016*fine;
#if LOOK > 1
  height += .0011*pores*(1. - mask.g);
  rough = mix(.52, .36, mask.g) + .10*(coarse - .5);
  gloss *= .72 + .30*fine;
  wrap = .10;
#endif
  vec3 dx = dFdx(v_position), dy = dFdy(v_position);
  float height_x = dFdx(height), height_y = dFdy(height);
  vec3 r1 = cross(dy, N), r2 = cross(N, dx);
  float det = dot(dx, r1);
  shading = normalize(abs(det)*N - sign(det)*(height_x*r1 + height_y*r2)*.6);
#elif MAT == 1        // eye
  vec4 texel = texture(tex, v_uv);
  if (texel.a < .5) discard;
  albedo = to_linear(texel.rgb)*tint;
  albedo = mix(vec3(dot(albedo, vec3(.3, .6, .1))), albedo, .58);
  albedo *= .9;
  shading = normalize(mix(N, normalize(v_position - eye_center), .85));
  rough = .2;
  gloss = 3.4;
  wrap = .1;
#elif MAT == 2        // textured or plain surface
  vec3 texel = to_linear(texture(tex, v_uv).rgb);
  albedo = min(mix(tint, texture_mean > 0. ? texel/texture_mean*tint : texel*tint, texture_mix), vec3(.9));
  gloss = .6;
#elif MAT == 3        // brows and lashes
  alpha = min(1., texture(tex, v_uv).r*texture_mix);
  if (alpha < .03) discard;
  albedo = tint;
  gloss = 0.;
#elif MAT == 4        // lenses
  alpha = opacity;
  gloss = 2.;
  rough = .08;
#elif MAT == 5        // strands; v_uv.y is the height on the head at rest
  float number;
  if (strand(v_along, number) < .5) discard;
  albedo = mix(hair_color, tip_color, smoothstep(tip_heights.x, tip_heights.y, v_uv.y));
#endif
  albedo = mix(albedo, clay.rgb, clay.a);
"""

# Light on strands: Kajiya and Kay's diffuse term, and two shifted highlights (Marschner et al. 2003, simplified).
STRAND_LIGHT = """
  vec3 T = normalize(v_rest);
  float lit = (shadow0 + shadow1 + shadow2)*.333;
  vec3 key = light_color[0]*shadow0 + light_color[1]*shadow1 + light_color[2]*shadow2;
  float layer = v_along.w;
#if LOOK > 1
  albedo *= (.84 + .32*number)*mix(.42, 1.10, layer)*mix(.75, 1., smoothstep(0., .25, v_along.y));
#else
  albedo *= (.74 + .52*number)*mix(.38, 1.12, layer)*mix(.75, 1., smoothstep(0., .25, v_along.y));
#endif
  float greyness = clamp(grey*1.5 - .5*hash1(v_along.z*91.7 + number*7.), 0., .85)*(1. - clay.a);
  albedo = mix(albedo, vec3(.34, .33, .32)*(.75 + .4*number)*mix(.5, 1.1, layer), greyness);
  float tangent_key = dot(T, key_dir), tangent_rim = dot(T, light_dir[3]);
  diffuse *= mix(.45, 1., layer);
  diffuse += key*sqrt(max(0., 1. - tangent_key*tangent_key))*clamp(.25 + .75*dot(N, key_dir), 0., 1.)*.8;
  diffuse += light_color[3]*shadow3*sqrt(max(0., 1. - tangent_rim*tangent_rim))
           * clamp(.3 + .7*dot(N, light_dir[3]), 0., 1.)*.7;
  diffuse += light_color[9]*clamp(.3 + .7*dot(N, light_dir[9]), 0., 1.)*.7;
  float shift = .16*(number - .5);
  for (int i = 0; i < 2; i++) {
    vec3 L = i == 0 ? key_dir : light_dir[3];
    vec3 H = normalize(L + V);
    float t1 = dot(normalize(T + N*(.10 + shift)), H), t2 = dot(normalize(T - N*(.12 - shift)), H);
    vec3 color = i == 0 ? key : light_color[3]*shadow3*.7;
    specular += color*clamp(dot(N, L) + .25, 0., 1.)*hair_gloss
              * (.045*pow(max(0., 1. - t1*t1), 45.) + .10*(albedo + .01)*pow(max(0., 1. - t2*t2), 9.));
  }
  specular *= mix(.3, 1., layer);
"""

SURFACE_LIGHT = """
  float widen = 1./(1. + wrap);
  float key0 = max(0., (dot(shading, light_dir[0]) + wrap)*widen)*shadow0;
  float key1 = max(0., (dot(shading, light_dir[1]) + wrap)*widen)*shadow1;
  float key2 = max(0., (dot(shading, light_dir[2]) + wrap)*widen)*shadow2;
  diffuse += light_color[0]*key0 + light_color[1]*key1 + light_color[2]*key2
           + light_color[3]*shadow3*max(0., (dot(shading, light_dir[3]) + wrap)*widen)
           + light_color[9]*max(0., (dot(shading, light_dir[9]) + wrap)*widen);
  float nv = max(dot(shading, V), 0.), a = rough*rough;
  for (int i = 0; i < 3; i++) {
    vec3 L = i == 0 ? key_dir : (i == 1 ? light_dir[3] : light_dir[9]);
    vec3 color = i == 0 ? (light_color[0]*shadow0 + light_color[1]*shadow1 + light_color[2]*shadow2)
                        : (i == 1 ? light_color[3]*shadow3 : light_color[9]);
    vec3 H = normalize(L + V);
    float nl = max(dot(shading, L), 0.), nh = max(dot(shading, H), 0.), vh = max(dot(V, H), 0.);
    float fresnel = .028 + .972*pow(1. - vh, 5.);
    float lobe = ggx(nh, a);
#if MAT == 0
    lobe = mix(lobe, ggx(nh, .5), .6);
#endif
    specular += color*nl*fresnel*min(lobe, 60.)*gloss*.25/(mix(.5, 1., nl)*mix(.5, 1., nv));
  }
  specular *= 1.6;
"""

OUTPUT = """
#if MAT == 0          // light through the ears
  diffuse += (light_color[0] + light_color[1] + light_color[2])*vec3(.5, .12, .06)*mask.b*max(0., -dot(N, key_dir))*.4;
#endif
  specular *= mix(1., .3, clay.a);
#ifdef PASS_BUFFERS
  if (alpha < .5) discard;
#if MAT == 0
  if (mask.g > .5) id = 7.; else if (mask.b > .5) id = 8.; else if (stubble > .55) id = 9.; else if (scalp > .6) id = 10.;
#endif
  float key_light = max(0., dot(N, light_dir[0]))*shadow0 + max(0., dot(N, light_dir[1]))*shadow1
                  + max(0., dot(N, light_dir[2]))*shadow2;
  out0 = vec4(normalize(v_normal), id);
  out1 = vec4(pow(max(albedo, 0.), vec3(1./2.2)), key_light*.333);
#elif MAT == 3 || MAT == 4
  out0 = vec4(albedo*diffuse + specular, alpha);
  out1 = vec4(0);
#else
  out0 = vec4(albedo*diffuse, scatter);
  out1 = vec4(specular, 1.);
#endif
"""

FRAGMENT = (
    DECLARATIONS
    + SHADOW
    + STRAND_COVERAGE
    + NOISE
    + "void main() {"
    + SURFACE
    + """
  vec3 diffuse = v_ambient, specular = vec3(0);
  float shadow0 = shadow(0, v_position, N), shadow1 = shadow(1, v_position, N), shadow2 = shadow(2, v_position, N);
  float shadow3 = shadow(3, v_position, N);
#if MAT == 5
"""
    + STRAND_LIGHT
    + "#else"
    + SURFACE_LIGHT
    + "#endif"
    + OUTPUT
    + "}\n"
)

FULL_SCREEN = """
in vec2 corner;
out vec2 place;
void main() {
  place = corner*.5 + .5;
  gl_Position = vec4(corner, 0, 1);
}
"""

# One direction of the blur of light below the skin; red travels farthest.  Alpha is the share of what scatters.
SCATTER = """
in vec2 place;
out vec4 result;
uniform sampler2D diffuse;
uniform sampler2D depth;
uniform vec2 direction;
uniform float depth_scale;
void main() {
  vec4 center = texture(diffuse, place);
  if (center.a < .02) { result = center; return; }
  float z = texture(depth, place).r;
  vec3 weights = vec3(.30, .5, .62), sum = center.rgb*weights;
  for (int i = 1; i <= 4; i++) {
    float x = float(i)/4.;
    vec3 weight = vec3(exp(-x*x*2.5), .6*exp(-x*x*9.), .4*exp(-x*x*16.));
    for (int s = -1; s <= 1; s += 2) {
      vec2 there = place + direction*x*float(s);
      vec4 other = texture(diffuse, there);
      float same = other.a*step(abs(texture(depth, there).r - z)*depth_scale, 1.);
      sum += other.rgb*weight*same;
      weights += weight*same;
    }
  }
  result = vec4(mix(center.rgb, sum/weights, center.a), center.a);
}
"""

COMPOSE = """
in vec2 place;
out vec4 result;
uniform sampler2D diffuse;
uniform sampler2D specular;
uniform sampler2D backdrop;
void main() {
  vec4 d = texture(diffuse, place), s = texture(specular, place);
  result = vec4(s.a > .5 ? d.rgb + s.rgb : texture(backdrop, place).rgb, 1.);
}
"""


def surface_program(material: Material, stage: str, look_version: int) -> tuple[str, str]:
    """Return vertex and fragment shader of a material.

    Args:
        material: what it draws.
        stage: ``shade``, ``buffers`` or ``depth``.
        look_version: of `options.LOOK_VERSIONS`.
    """
    macros = f"#define MAT {int(material)}\n#define LOOK {look_version}\n"
    if stage != "depth":
        macros += f"#define PASS_{stage.upper()}\n"
    return VERSION + macros + VERTEX, VERSION + macros + (DEPTH if stage == "depth" else FRAGMENT)
