"""Small texts that hold every construct once, to be damaged: quick to read, so that many can be."""

TABLES = """
FileNames
1 "train.py"
2 "/lib/python3.11/site-packages/flax/core.py"

FunctionNames
1 "step"
2 "make.<locals>.loss"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=4 end_column=20}
2 {file_name_id=2 function_name_id=2 line=20 end_line=20 column=4 end_column=20}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

"""

TPU = (
    """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }, \
num_partitions=8
"""
    + TABLES
    + """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%product (p0: bf16[8,256,64,1], p1: bf16[64,16,128,1]) -> bf16[8,256,16,128] {
  %p0 = bf16[8,256,64,1]{2,1,0,3:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[64,16,128,1]{2,1,0,3:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[8,256,16,128]{3,1,2,0:T(8,128)(2,1)} convolution(%p0, %p1), \
window={size=1x16 stride=1x1 pad=0_0x15_15 lhs_dilate=1x1 rhs_dilate=1x1 rhs_reversal=0x1}, \
dim_labels=0bf1_i1o0->0b1f
}

%update (p0: f32[4,512], p1: f32[1,512], i: s32[]) -> (f32[4,512], f32[1,512]) {
  %p0.1 = f32[4,512]{1,0:T(4,128)} parameter(0)
  %p1.1 = f32[1,512]{1,0:T(1,128)S(1)} parameter(1)
  %i = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %row = f32[1,512]{1,0:T(1,128)} dynamic-slice(%p0.1, %i, %zero.1), dynamic_slice_sizes={1,512}
  %both = f32[1,512]{1,0:T(1,128)} add(%row, %p1.1)
  %dus = f32[4,512]{1,0:T(4,128)} dynamic-update-slice(%p0.1, %both, %i, %zero.1)
  ROOT %results = (f32[4,512]{1,0:T(4,128)}, f32[1,512]{1,0:T(1,128)}) tuple(%dus, %both)
}

%start (p: bf16[2,512]) -> (bf16[2,512], bf16[8,512], u32[]) {
  %p.1 = bf16[2,512]{1,0} parameter(0)
  %gather.1 = bf16[8,512]{1,0} all-gather(%p.1), channel_id=3, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, \
frontend_attributes={chain_id="7"}
  ROOT %begin = (bf16[2,512]{1,0}, bf16[8,512]{1,0}, u32[]{:S(2)}) custom-call(%p.1, %gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%done (p: (bf16[2,512], bf16[8,512], u32[])) -> bf16[8,512] {
  %p.2 = (bf16[2,512]{1,0}, bf16[8,512]{1,0}, u32[]{:S(2)}) parameter(0)
  %piece = bf16[2,512]{1,0} get-tuple-element(%p.2), index=0
  %gather.2 = bf16[8,512]{1,0} all-gather(%piece), channel_id=3, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, frontend_attributes={chain_id="7"}
  ROOT %end = bf16[8,512]{1,0} custom-call(%gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (p: f32[8,512]) -> f32[4,512] {
  %p.3 = f32[8,512]{1,0} parameter(0)
  %reduced = f32[8,512]{1,0} all-reduce(%p.3), channel_id=4, replica_groups=[4,2]<=[2,4]T(1,0), \
use_global_device_ids=true, to_apply=%add
  %id = u32[] partition-id()
  ROOT %cut = f32[4,512]{1,0} dynamic-slice(%reduced, %id, %id), dynamic_slice_sizes={4,512}
}

%condition (c: (s32[], f32[4,512], s32[])) -> pred[] {
  %c.1 = (s32[]{:T(128)}, f32[4,512]{1,0}, s32[]) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  %limit = s32[] get-tuple-element(%c.1), index=2
  ROOT %less = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

%body (c: (s32[], f32[4,512], s32[])) -> (s32[], f32[4,512], s32[]) {
  %c.2 = (s32[]{:T(128)}, f32[4,512]{1,0}, s32[]) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%c.2), index=0
  %state = f32[4,512]{1,0:T(4,128)} get-tuple-element(%c.2), index=1
  %limit.1 = s32[] get-tuple-element(%c.2), index=2
  %one = s32[] constant(1)
  %to-vmem = (f32[4,512]{1,0:T(4,128)S(1)}, f32[4,512]{1,0:T(4,128)}, u32[]{:S(2)}) \
copy-start(%state)
  %shifted-start = (f32[4,512]{1,0}, f32[4,512]{1,0}, u32[], u32[]) \
collective-permute-start(%state), channel_id=5, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %copied = f32[4,512]{1,0:T(4,128)S(1)} copy-done(%to-vmem)
  %negated = f32[4,512]{1,0:T(4,128)} fusion(%copied), kind=kLoop, calls=%negate, \
metadata={op_name="jit(step)/while/body/neg" stack_frame_id=2}, \
backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  %shifted = f32[4,512]{1,0} collective-permute-done(%shifted-start)
  %next = s32[]{:T(128)} add(%n.1, %one)
  %mixed = f32[4,512]{1,0:T(4,128)} add(%negated, %shifted), \
backend_config={"window_config":{"estimated_cycles":"1234"}}
  ROOT %carry = (s32[]{:T(128)}, f32[4,512]{1,0}, s32[]) tuple(%next, %mixed, %limit.1)
}

%negate (p: f32[4,512]) -> f32[4,512] {
  %p.4 = f32[4,512]{1,0} parameter(0)
  ROOT %neg = f32[4,512]{1,0} negate(%p.4)
}

ENTRY %main (a: bf16[8,256,64,1], b: bf16[64,16,128,1], w: bf16[2,512], s: f32[4,512]) -> f32[4] {
  %a = bf16[8,256,64,1]{2,1,0,3:T(8,128)(2,1)} parameter(0), sharding={devices=[8]<=[8]}
  %b = bf16[64,16,128,1]{2,1,0,3:T(8,128)(2,1)} parameter(1)
  %w = bf16[2,512]{1,0:T(2,128)(2,1)} parameter(2)
  %s = f32[4,512]{1,0:T(4,128)S(5)} parameter(3)
  %zero = s32[]{:T(128)} constant(0)
  %count = s32[] constant(12)
  %gathering = (bf16[2,512]{1,0}, bf16[8,512]{1,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, \
calls=%start, metadata={op_name="jit(step)/gather" stack_frame_id=1}
  %fetch = (f32[4,512]{1,0:T(4,128)}, f32[4,512]{1,0:T(4,128)S(5)}, u32[]{:S(2)}) copy-start(%s)
  %matmul = bf16[8,256,16,128]{3,1,2,0:T(8,128)(2,1)} fusion(%a, %b), kind=kOutput, \
calls=%product, backend_config={"window_config":{"estimated_cycles":"56789"}}
  %fetched = f32[4,512]{1,0:T(4,128)} copy-done(%fetch)
  %gathered = bf16[8,512]{1,0} fusion(%gathering), kind=kCustom, calls=%done
  %wide = f32[8,512]{1,0} convert(%gathered)
  %scattered = f32[4,512]{1,0} fusion(%wide), kind=kCustom, calls=%all-reduce-scatter
  %init = (s32[]{:T(128)}, f32[4,512]{1,0}, s32[]) tuple(%zero, %scattered, %count)
  %loop = (s32[]{:T(128)}, f32[4,512]{1,0}, s32[]) while(%init), condition=%condition, body=%body
  %state.1 = f32[4,512]{1,0} get-tuple-element(%loop), index=1
  %updated = (f32[4,512]{1,0:T(4,128)}, f32[1,512]{1,0}) fusion(%state.1, %s, %zero), kind=kLoop, \
calls=%update, output_to_operand_aliasing={{0}: (0, {})}
  %kernel = (f32[512]{0}, bf16[8,16,256,128]{3,2,1,0}) custom-call(%a, %matmul, %matmul), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"1000",\
"transcendentals":10,"bytes_accessed":"77"}}}
  %splash_mha_fwd.1 = bf16[8,16,256,128]{3,2,1,0} custom-call(%matmul, %matmul, %matmul), \
custom_call_target="tpu_custom_call"
  %reduced.1 = f32[4,512]{1,0} all-reduce(%state.1), replica_groups={{0,1,2,3},{4,5,6,7}}, \
to_apply=%add
  ROOT %out = f32[4,512]{1,0} negate(%reduced.1)
}
"""
)

SLICES = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%yes (p: f32[8,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0} parameter(0)
  ROOT %e = f32[8,128]{1,0} exponential(%p.1)
}

%no (p: f32[8,128]) -> f32[8,128] {
  %p.2 = f32[8,128]{1,0} parameter(0)
  ROOT %same = f32[8,128]{1,0} copy(%p.2)
}

ENTRY %main (x: f32[8,128], p: pred[]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %p = pred[]{:T(512)} parameter(1)
  %token = token[] after-all()
  %send.1 = (f32[8,128]{1,0}, u32[], token[]) send(%x, %token), channel_id=4, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.19_0",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (f32[8,128]{1,0}, u32[], token[]) recv(%token), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.19_0",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %branch = f32[8,128]{1,0} conditional(%p, %x, %x), true_computation=%yes, false_computation=%no
  %sent = token[] send-done(%send.1), channel_id=4
  %got = (f32[8,128]{1,0}, token[]) recv-done(%recv.1), channel_id=3
  %data = f32[8,128]{1,0} get-tuple-element(%got), index=0
  %called = f32[8,128]{1,0} call(%branch), to_apply=%yes
  %sum = f32[8,128]{1,0} add(%called, %data)
  ROOT %swapped = f32[8,128]{1,0} all-to-all(%sum), replica_groups={}, dimensions={0}
}
"""

GPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x.1 = bf16[] parameter(0)
  %y.1 = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x.1, %y.1)
}

%gemm (a: bf16[64,128], b: bf16[128,256]) -> bf16[64,256] {
  %a.1 = bf16[64,128]{1,0} parameter(0)
  %b.1 = bf16[128,256]{1,0} parameter(1)
  ROOT %dot = bf16[64,256]{1,0} dot(%a.1, %b.1), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, metadata={op_name="dot" source_file="train.py" source_line=7}
}

%async (p: bf16[64,256]) -> bf16[32,256] {
  %p.1 = bf16[64,256]{1,0} parameter(0)
  ROOT %scatter = bf16[32,256]{1,0} reduce-scatter(%p.1), channel_id=2, \
replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a':(1)2}, dimensions={0}, \
to_apply=%add
}

%body (c: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %c.1 = (s32[], bf16[64,128]{1,0}) parameter(0)
  ROOT %c.2 = (s32[], bf16[64,128]{1,0}) copy(%c.1)
}

%condition (c: (s32[], bf16[64,128])) -> pred[] {
  %c.3 = (s32[], bf16[64,128]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: bf16[64,128], b: bf16[128,256]) -> bf16[64,256] {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = bf16[128,256]{1,0} parameter(1)
  %gather = (bf16[64,128]{1,0}, bf16[256,128]{1,0}) all-gather-start(%a), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}, \
backend_config={"collective_backend_config":{"is_sync":false}}
  %product = bf16[64,256]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm
  %cublas = (bf16[64,256]{1,0}, s8[1024]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_batch_dimensions":["0"],"lhs_contracting_dimensions":["1"]}}}
  %gathered = bf16[256,128]{1,0} all-gather-done(%gather)
  %scattering = ((bf16[64,256]{1,0}), bf16[32,256]{1,0}) async-start(%product), \
async_execution_thread="parallel", calls=%async
  %zero = s32[] constant(0)
  %init = (s32[], bf16[64,128]{1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[64,128]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %scattered = bf16[32,256]{1,0} async-done(%scattering)
  ROOT %result = bf16[64,256]{1,0} copy(%product)
}
"""

SEEDS = (TPU, SLICES, GPU)
